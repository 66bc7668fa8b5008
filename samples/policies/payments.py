"""The rules of payments.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one disputed charge."""
    window = {"duplicate_charge": "duplicate_days", "wrong_amount": "amount_days"}[issue_type]
    return {
        "days_since_charge": near(rng, limits[window]),
        "charge_status": rng.choice(("posted", "posted", "pending", "reversed")),
        "payment_method": rng.choice(("card", "wallet", "voucher")),
        "order_matches": seldom(rng),
        "bank_dispute": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="PAY",
    limits={"duplicate_days": 90, "amount_days": 60},
    requests={
        "duplicate_charge": Request(
            noun="refund",
            usual="Eligible",
            messages=(
                "I seem to be charged again for my order.",
                "The same payment shows up again on my account.",
                "Please refund the charge that looks repeated.",
                "Why do I see the same amount again?",
            ),
        ),
        "wrong_amount": Request(
            noun="correction",
            usual="Not Eligible",
            messages=(
                "I think I was charged more than the price shown.",
                "The amount on my statement looks too high.",
                "Please correct the amount you charged me.",
                "The price seemed lower when I ordered.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="Escalate",
            when=lambda case, _: case["bank_dispute"],
            reason="A bank dispute is open for this charge",
            customer_response="Our payments team will settle this with your bank.",
            next_action="Hand over to the payments team",
        ),
        Rule(
            section=3,
            decision="In Progress",
            when=lambda case, _: case["charge_status"] == "pending",
            reason="The charge is pending and may vanish by itself",
            customer_response="The charge is only reserved; we will look again in a few days.",
            next_action="Check the charge again later",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, _: case["charge_status"] == "reversed",
            reason="The charge is already reversed",
            customer_response="The money is already on its way back to you.",
            next_action="Close the case as reversed",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            only_for="duplicate_charge",
            when=lambda case, limits: case["days_since_charge"] > limits["duplicate_days"],
            reason="Charged {days_since_charge} days ago; duplicates close after {duplicate_days} days",
            customer_response="The window of {duplicate_days} days has closed, so we cannot refund it.",
            next_action="Close the case as too late",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="wrong_amount",
            when=lambda case, limits: case["days_since_charge"] > limits["amount_days"],
            reason="Charged {days_since_charge} days ago; corrections close after {amount_days} days",
            customer_response="The window of {amount_days} days has closed, so the amount stands.",
            next_action="Close the case as too late",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            when=lambda case, _: case["order_matches"],
            reason="The order list explains the charge in full",
            customer_response="The charge matches your orders; we will send you the list.",
            next_action="Send the list of orders",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="duplicate_charge",
            when=otherwise,
            reason="Day {days_since_charge} of {duplicate_days}, charge posted, no order explains it",
            customer_response="You are right; the repeated charge goes back to your {payment_method}.",
            next_action="Refund the duplicate to the {payment_method}",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="wrong_amount",
            when=otherwise,
            reason="Day {days_since_charge} of {amount_days}, charge posted, no order explains it",
            customer_response="You are right; the difference goes back to your {payment_method}.",
            next_action="Refund the difference to the {payment_method}",
        ),
    ),
)
