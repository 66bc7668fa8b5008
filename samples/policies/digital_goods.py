"""The rules of digital_goods.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one downloaded title."""
    return {
        "hours_since_purchase": near(rng, limits["refund_hours"]),
        "devices_linked": near(rng, limits["allowed_devices"]),
        "key_state": rng.choice(("unused", "activated", "activated", "revoked")),
        "file_corrupt": rng.choice((True, False)),
        "ticket_open": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="DIG",
    limits={"refund_hours": 48, "allowed_devices": 3},
    requests={
        "download_refund": Request(
            noun="refund",
            usual="Not Eligible",
            messages=(
                "I want my money back for this download.",
                "Please refund the title I bought.",
                "This download is not what I wanted.",
                "Can I return a digital title?",
            ),
        ),
        "access_restore": Request(
            noun="access",
            usual="Eligible",
            messages=(
                "I cannot open the title I bought.",
                "Please give me access to my title again.",
                "My purchase no longer opens, please help.",
                "I lost access to something I paid for.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="In Progress",
            when=lambda case, _: case["ticket_open"],
            reason="A technical ticket is open and must be closed first",
            customer_response="Our technical team is working on it; we will write afterwards.",
            next_action="Wait for the technical team",
        ),
        Rule(
            section=3,
            decision="Escalate",
            when=lambda case, _: case["key_state"] == "revoked",
            reason="The key was revoked by the publisher",
            customer_response="Our licence desk will ask the publisher and contact you.",
            next_action="Hand over to the licence desk",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            only_for="download_refund",
            when=lambda case, limits: case["hours_since_purchase"] > limits["refund_hours"],
            reason="Bought {hours_since_purchase} hours ago; refunds close after {refund_hours} hours",
            customer_response="The window of {refund_hours} hours has closed, so we cannot refund it.",
            next_action="Close the case as too late",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            only_for="download_refund",
            when=lambda case, _: case["key_state"] == "activated" and not case["file_corrupt"],
            reason="The key is activated and the file is not corrupt",
            customer_response="The title has been used, so no refund is possible.",
            next_action="Close the case as used",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="access_restore",
            when=lambda case, limits: case["devices_linked"] > limits["allowed_devices"],
            reason="Devices linked: {devices_linked}; no more than {allowed_devices} are allowed",
            customer_response="Please sign out somewhere; only {allowed_devices} devices are allowed.",
            next_action="Ask to sign out devices",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="download_refund",
            when=otherwise,
            reason="Hour {hours_since_purchase} of {refund_hours}, key {key_state}, nothing excludes it",
            customer_response="Your refund is approved and the key will be switched off.",
            next_action="Refund and switch off the key",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="access_restore",
            when=otherwise,
            reason="Devices linked: {devices_linked} of {allowed_devices}, key {key_state}",
            customer_response="We send you a fresh download link and your key.",
            next_action="Send a fresh download link",
        ),
    ),
)
