"""The rules of returns.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one delivered item."""
    window = {"refund_request": "refund_days", "exchange_request": "exchange_days"}[issue_type]
    return {
        "days_since_delivery": near(rng, limits[window]),
        "item_condition": rng.choice(("unused", "unused", "worn", "faulty")),
        "final_sale": seldom(rng),
        "return_in_transit": seldom(rng),
        "safety_incident": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="RET",
    limits={"refund_days": 30, "exchange_days": 45},
    requests={
        "refund_request": Request(
            noun="refund",
            usual="Eligible",
            messages=(
                "I would like my money back for this item.",
                "Please refund the item I bought from you.",
                "Can I send this back and get a refund?",
                "This item is not for me, I want a refund.",
            ),
        ),
        "exchange_request": Request(
            noun="exchange",
            usual="Not Eligible",
            messages=(
                "I would like to swap this for another size.",
                "Can you exchange this item for me?",
                "Please send me a different colour instead.",
                "I want to exchange what I received.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="In Progress",
            when=lambda case, _: case["return_in_transit"],
            reason="A return parcel is in transit and must be inspected first",
            customer_response="Your parcel is on its way to us; we will write after the inspection.",
            next_action="Wait for the warehouse inspection",
        ),
        Rule(
            section=3,
            decision="Escalate",
            when=lambda case, _: case["safety_incident"],
            reason="A safety incident was reported, so the safety team takes over",
            customer_response="We are sorry; our safety team will contact you shortly.",
            next_action="Hand over to the safety team",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, _: case["final_sale"] and case["item_condition"] != "faulty",
            reason="A final sale item that is {item_condition} cannot come back",
            customer_response="This was a final sale item, so no {request} is possible.",
            next_action="Close the case as final sale",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            only_for="refund_request",
            when=lambda case, limits: case["days_since_delivery"] > limits["refund_days"],
            reason="Delivered {days_since_delivery} days ago; refunds close after {refund_days} days",
            customer_response="The refund window of {refund_days} days has closed, so we cannot refund it.",
            next_action="Close the case as too late",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="exchange_request",
            when=lambda case, limits: case["days_since_delivery"] > limits["exchange_days"],
            reason="Delivered {days_since_delivery} days ago; exchanges close after {exchange_days} days",
            customer_response="The exchange window of {exchange_days} days has closed, so we cannot swap it.",
            next_action="Close the case as too late",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            when=lambda case, _: case["item_condition"] == "worn",
            reason="The item is worn and cannot be sold again",
            customer_response="The item has been worn, so no {request} is possible.",
            next_action="Close the case as worn item",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="refund_request",
            when=otherwise,
            reason="Day {days_since_delivery} of {refund_days}, item {item_condition}, nothing excludes it",
            customer_response="Your refund is approved; please use the free label we send.",
            next_action="Send label and prepare refund",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="exchange_request",
            when=otherwise,
            reason="Day {days_since_delivery} of {exchange_days}, item {item_condition}, nothing excludes it",
            customer_response="Your exchange is approved; please use the free label we send.",
            next_action="Send label and prepare exchange",
        ),
    ),
)
