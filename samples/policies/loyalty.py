"""The rules of loyalty.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one member's account."""
    return {
        "points_balance": near(rng, limits["redemption_points"]),
        "orders_this_year": near(rng, limits["gold_orders"]),
        "account_status": rng.choice(("active", "active", "frozen", "dormant")),
        "points_pending": seldom(rng),
        "staff_account": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="LOY",
    limits={"redemption_points": 500, "gold_orders": 12},
    requests={
        "points_redemption": Request(
            noun="voucher",
            usual="Eligible",
            messages=(
                "I want to turn my points into a voucher.",
                "Please redeem my points for me.",
                "Can I use my points for a voucher now?",
                "I would like to spend my loyalty points.",
            ),
        ),
        "tier_upgrade": Request(
            noun="gold tier",
            usual="Not Eligible",
            messages=(
                "I would like to move up to the gold tier.",
                "Please upgrade my membership to gold.",
                "Am I ready for the gold tier?",
                "Can you check my upgrade to gold?",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="Escalate",
            when=lambda case, _: case["account_status"] == "frozen",
            reason="The account is frozen by the audit",
            customer_response="Our audit team will speak with you about your account.",
            next_action="Hand over to the audit team",
        ),
        Rule(
            section=3,
            decision="In Progress",
            when=lambda case, _: case["points_pending"],
            reason="Points from the newest order are still pending",
            customer_response="Your newest points are being booked; we will write in a few days.",
            next_action="Wait for the booking of points",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, _: case["staff_account"],
            reason="A staff account collects points for statistics only",
            customer_response="Staff have their own discount, so no {request} is possible.",
            next_action="Close the case as staff account",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            only_for="points_redemption",
            when=lambda case, limits: case["points_balance"] <= limits["redemption_points"],
            reason="Balance of {points_balance} points; a voucher needs more than {redemption_points}",
            customer_response="A voucher needs more than {redemption_points} points; please collect more.",
            next_action="Close the case as few points",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="tier_upgrade",
            when=lambda case, limits: case["orders_this_year"] <= limits["gold_orders"],
            reason="Orders this year: {orders_this_year}; gold needs more than {gold_orders}",
            customer_response="The gold tier needs more than {gold_orders} orders in the year.",
            next_action="Close the case as few orders",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            only_for="points_redemption",
            when=lambda case, _: case["account_status"] == "dormant",
            reason="The account is dormant until the next paid order",
            customer_response="Your points are asleep; they wake with your next paid order.",
            next_action="Close the case as dormant",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="points_redemption",
            when=otherwise,
            reason="Balance of {points_balance} points is more than {redemption_points}, account active",
            customer_response="Your points are now a voucher, which we send you today.",
            next_action="Issue the voucher",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="tier_upgrade",
            when=otherwise,
            reason="Orders this year: {orders_this_year}, more than {gold_orders}, account {account_status}",
            customer_response="Welcome to the gold tier; it starts at once.",
            next_action="Set the account to gold",
        ),
    ),
)
