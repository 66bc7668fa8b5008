"""The rules of warranty.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one damaged device."""
    return {
        "months_owned": near(rng, limits["warranty_months"]),
        "repairs_done": near(rng, limits["repairs_first"]),
        "damage_cause": rng.choice(("defect", "defect", "accident", "modified")),
        "at_workshop": seldom(rng),
        "safety_hazard": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="WAR",
    limits={"warranty_months": 24, "repairs_first": 2},
    requests={
        "repair_claim": Request(
            noun="free repair",
            usual="Eligible",
            messages=(
                "My device stopped working, please repair it.",
                "I need a repair under the warranty.",
                "Something is wrong with my device, can you fix it?",
                "Please repair this device for free.",
            ),
        ),
        "replacement_claim": Request(
            noun="replacement",
            usual="Not Eligible",
            messages=(
                "I want a new device instead of a repair.",
                "Please replace my device under the warranty.",
                "Can you send me another device for this?",
                "My device does not work, I need a replacement.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="Escalate",
            when=lambda case, _: case["safety_hazard"],
            reason="The device is a safety hazard, so the safety team takes over",
            customer_response="Please stop using the device; our safety team will call you.",
            next_action="Hand over to the safety team",
        ),
        Rule(
            section=3,
            decision="In Progress",
            when=lambda case, _: case["at_workshop"],
            reason="The device is at the workshop and the report comes first",
            customer_response="Our technicians are examining the device; we will write after their report.",
            next_action="Wait for the workshop report",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, limits: case["months_owned"] > limits["warranty_months"],
            reason="Owned for {months_owned} months; the warranty ends after {warranty_months} months",
            customer_response="The warranty of {warranty_months} months has ended; no {request} is possible.",
            next_action="Offer a paid repair",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            when=lambda case, _: case["damage_cause"] in ("accident", "modified"),
            reason="The damage cause is {damage_cause}; the warranty covers defects only",
            customer_response="The warranty covers defects only, so no {request} is possible.",
            next_action="Close the case as not covered",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="replacement_claim",
            when=lambda case, limits: case["repairs_done"] <= limits["repairs_first"],
            reason="Repairs done: {repairs_done}; a replacement needs more than {repairs_first}",
            customer_response="A repair comes before a replacement; please make a repair claim.",
            next_action="Invite to a repair claim",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="repair_claim",
            when=otherwise,
            reason="Month {months_owned} of {warranty_months} and the cause is a defect",
            customer_response="Your repair is free; please send the device with our label.",
            next_action="Send label and book the repair",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="replacement_claim",
            when=otherwise,
            reason="Month {months_owned} of {warranty_months}, a defect, more than {repairs_first} repairs",
            customer_response="Your replacement is approved and will be sent to you.",
            next_action="Send a replacement device",
        ),
    ),
)
