"""The rules of marketplace.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one complaint about a seller."""
    return {
        "days_since_contact": near(rng, limits["answer_days"], least=1),
        "order_value": near(rng, limits["agent_value"], least=10),
        "seller_status": rng.choice(("open", "open", "suspended", "holiday")),
        "seller_offer": rng.choice(("none", "none", "partial", "full")),
        "photos_sent": rng.choice((True, False)),
        "paid_on_site": not seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="MKT",
    limits={"answer_days": 3, "agent_value": 400},
    requests={
        "not_as_described": Request(
            noun="refund",
            usual="Eligible",
            messages=(
                "The item differs from the seller's description.",
                "What I received does not match the offer.",
                "The seller sent something other than described.",
                "This is not what the listing promised.",
            ),
        ),
        "seller_silent": Request(
            noun="refund",
            usual="In Progress",
            messages=(
                "The seller no longer answers me, please step in.",
                "My messages to the seller get no answer anymore.",
                "The seller is silent and I want my money back.",
                "Please help, the seller has stopped writing back.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="Not Eligible",
            when=lambda case, _: not case["paid_on_site"],
            reason="The order was not paid on the site",
            customer_response="The order was paid outside our site, so we cannot refund it.",
            next_action="Close the case as paid elsewhere",
        ),
        Rule(
            section=3,
            decision="Escalate",
            when=lambda case, _: case["seller_status"] == "suspended",
            reason="The seller is suspended, so the trust team decides",
            customer_response="Our trust team handles this seller and will contact you.",
            next_action="Hand over to the trust team",
        ),
        Rule(
            section=4,
            decision="In Progress",
            when=lambda case, limits: case["days_since_contact"] <= limits["answer_days"],
            reason="Day {days_since_contact}; the seller may answer until day {answer_days}",
            customer_response="The seller may answer until day {answer_days}; please wait until then.",
            next_action="Wait for the seller",
        ),
        Rule(
            section=5,
            decision="Escalate",
            when=lambda case, limits: case["order_value"] > limits["agent_value"],
            reason="Order value {order_value} is more than {agent_value} dollars",
            customer_response="A trust officer will decide on this order and contact you.",
            next_action="Hand over to a trust officer",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            when=lambda case, _: case["seller_offer"] == "full",
            reason="The seller has made a full offer",
            customer_response="The seller offers a full refund; please accept that offer.",
            next_action="Ask to accept the offer",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            only_for="not_as_described",
            when=lambda case, _: not case["photos_sent"],
            reason="No photos of the item were sent",
            customer_response="Please send photos of the item, then ask us again.",
            next_action="Ask for photos",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="not_as_described",
            when=otherwise,
            reason="Day {days_since_contact} is past {answer_days}, offer {seller_offer}, photos sent",
            customer_response="We refund the full price; please send the item back.",
            next_action="Refund and send return label",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="seller_silent",
            when=otherwise,
            reason="Day {days_since_contact} is past {answer_days} and the offer is {seller_offer}",
            customer_response="We refund the full price and settle it with the seller.",
            next_action="Refund and charge the seller",
        ),
    ),
)
