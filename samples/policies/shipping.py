"""The rules of shipping.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one parcel behind its promised date."""
    return {
        "days_overdue": near(rng, limits["waiting_days"], least=1),
        "parcel_value": near(rng, limits["insured_value"], least=10),
        "carrier_scan": rng.choice(("moving", "stalled", "stalled", "delivered")),
        "delay_cause": rng.choice(("carrier", "customs", "weather")),
        "address_correct": not seldom(rng),
        "trace_open": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="SHP",
    limits={"waiting_days": 7, "insured_value": 800},
    requests={
        "late_delivery": Request(
            noun="shipping refund",
            usual="Not Eligible",
            messages=(
                "My parcel is late, please refund the shipping fee.",
                "You promised an earlier date; I want the shipping fee back.",
                "The delivery is behind schedule and I paid for shipping.",
                "Please return my shipping fee for this late order.",
            ),
        ),
        "lost_parcel": Request(
            noun="replacement",
            usual="Eligible",
            messages=(
                "I think my parcel is lost, please send another.",
                "My order never reached me, can you replace it?",
                "The parcel seems to be gone; I need a replacement.",
                "I never received the parcel and want a new copy.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="In Progress",
            when=lambda case, _: case["trace_open"],
            reason="A carrier trace is open and must end first",
            customer_response="The carrier is searching for your parcel; we will write when it answers.",
            next_action="Wait for the carrier trace",
        ),
        Rule(
            section=3,
            decision="Escalate",
            when=lambda case, limits: case["parcel_value"] > limits["insured_value"],
            reason="Parcel value {parcel_value} is more than {insured_value} dollars",
            customer_response="Our claims desk will check the insurance and contact you.",
            next_action="Hand over to the claims desk",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, _: not case["address_correct"],
            reason="The address given with the order was not correct",
            customer_response="The address was not correct, so no {request} is possible.",
            next_action="Offer a new order",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            when=lambda case, limits: case["days_overdue"] <= limits["waiting_days"],
            reason="Overdue by {days_overdue}; the waiting period lasts until day {waiting_days}",
            customer_response="Please wait until day {waiting_days} has passed, then ask us again.",
            next_action="Close until the waiting period ends",
        ),
        Rule(
            section=6,
            decision="Escalate",
            only_for="lost_parcel",
            when=lambda case, _: case["carrier_scan"] == "delivered",
            reason="The carrier scan says delivered but the customer has nothing",
            customer_response="Our carrier desk will compare the delivery photo and contact you.",
            next_action="Hand over to the carrier desk",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            only_for="late_delivery",
            when=lambda case, _: case["delay_cause"] == "weather",
            reason="The delay was caused by weather",
            customer_response="Weather caused this delay, so the shipping fee cannot be refunded.",
            next_action="Close the case as weather delay",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="late_delivery",
            when=otherwise,
            reason="Overdue by {days_overdue}, past day {waiting_days}, delay caused by {delay_cause}",
            customer_response="We are sorry for the delay; your shipping fee will be refunded.",
            next_action="Refund the shipping fee",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="lost_parcel",
            when=otherwise,
            reason="Overdue by {days_overdue}, past day {waiting_days}, last scan {carrier_scan}",
            customer_response="We are sorry for the loss; a free replacement is on its way.",
            next_action="Send a free replacement",
        ),
    ),
)
