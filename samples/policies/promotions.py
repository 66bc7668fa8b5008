"""The rules of promotions.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one order that missed a better price."""
    return {
        "basket_total": near(rng, limits["basket_minimum"], least=5),
        "days_since_purchase": near(rng, limits["adjustment_days"]),
        "campaign_status": rng.choice(("running", "running", "ended", "unconfirmed")),
        "clearance_item": seldom(rng),
        "several_accounts": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="PRO",
    limits={"basket_minimum": 40, "adjustment_days": 14},
    requests={
        "coupon_credit": Request(
            noun="credit",
            usual="Not Eligible",
            messages=(
                "My coupon did not lower the bill.",
                "The coupon was ignored at checkout, please credit me.",
                "I entered a coupon but paid the full price.",
                "Please give me the value of my coupon.",
            ),
        ),
        "price_adjustment": Request(
            noun="price adjustment",
            usual="Eligible",
            messages=(
                "The price dropped after I bought it.",
                "Please refund the difference to the new price.",
                "I saw the same item cheaper in your shop.",
                "Your price is lower now, can I get the difference?",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="Escalate",
            when=lambda case, _: case["several_accounts"],
            reason="The promotion was used from several accounts of the customer",
            customer_response="Our promotions team will review your accounts and contact you.",
            next_action="Hand over to the promotions team",
        ),
        Rule(
            section=3,
            decision="In Progress",
            when=lambda case, _: case["campaign_status"] == "unconfirmed",
            reason="The campaign is unconfirmed until marketing answers",
            customer_response="We are checking the promotion and will write in a few days.",
            next_action="Wait for the answer of marketing",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, _: case["campaign_status"] == "ended",
            reason="The campaign had ended when the order was paid",
            customer_response="The promotion was already over, so no {request} is possible.",
            next_action="Close the case as ended campaign",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            only_for="coupon_credit",
            when=lambda case, limits: case["basket_total"] <= limits["basket_minimum"],
            reason="Basket of {basket_total} dollars; coupons need more than {basket_minimum} dollars",
            customer_response="Coupons need a basket of more than {basket_minimum} dollars, so none applied.",
            next_action="Close the case as small basket",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="price_adjustment",
            when=lambda case, limits: case["days_since_purchase"] > limits["adjustment_days"],
            reason="Bought {days_since_purchase} days ago; adjustments close after {adjustment_days} days",
            customer_response="The window of {adjustment_days} days has closed, so the old price stands.",
            next_action="Close the case as too late",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            when=lambda case, _: case["clearance_item"],
            reason="The item is from clearance and its price was final",
            customer_response="Clearance prices are final, so no {request} is possible.",
            next_action="Close the case as clearance",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="coupon_credit",
            when=otherwise,
            reason="Basket of {basket_total} dollars is more than {basket_minimum}, campaign running",
            customer_response="You are right; the value of the coupon is now store credit.",
            next_action="Book the coupon as credit",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="price_adjustment",
            when=otherwise,
            reason="Day {days_since_purchase} of {adjustment_days}, campaign running, not clearance",
            customer_response="You are right; we will refund the difference to the new price.",
            next_action="Refund the price difference",
        ),
    ),
)
