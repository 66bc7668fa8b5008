"""The rules of fraud.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one account that somebody else may have used."""
    return {
        "order_value": near(rng, limits["agent_value"], least=10),
        "failed_logins": near(rng, limits["tolerated_logins"]),
        "identity_check": rng.choice(("passed", "passed", "failed", "missing")),
        "known_device": seldom(rng),
        "review_open": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="FRD",
    limits={"agent_value": 250, "tolerated_logins": 8},
    requests={
        "unknown_order": Request(
            noun="cancellation",
            usual="Escalate",
            messages=(
                "I did not place this order, please cancel it.",
                "There is an order on my account I do not know.",
                "Somebody ordered something in my name.",
                "I do not recognise this order, refund it please.",
            ),
        ),
        "account_unlock": Request(
            noun="unlock",
            usual="In Progress",
            messages=(
                "My account is locked, please open it.",
                "I cannot sign in because my account is locked.",
                "Please unlock my account again.",
                "How do I get back into my locked account?",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="In Progress",
            when=lambda case, _: case["review_open"],
            reason="A security review is open and must end first",
            customer_response="Your account is being reviewed; we will write when it is done.",
            next_action="Wait for the security review",
        ),
        Rule(
            section=3,
            decision="Escalate",
            when=lambda case, _: case["identity_check"] == "failed",
            reason="The identity check failed, so the security team takes over",
            customer_response="Our security team will contact you about your account.",
            next_action="Hand over to the security team",
        ),
        Rule(
            section=4,
            decision="Escalate",
            only_for="unknown_order",
            when=lambda case, limits: case["order_value"] > limits["agent_value"],
            reason="Order value {order_value} is more than {agent_value} dollars",
            customer_response="Our security team will look into this order and contact you.",
            next_action="Hand over to the security team",
        ),
        Rule(
            section=5,
            decision="Escalate",
            only_for="account_unlock",
            when=lambda case, limits: case["failed_logins"] > limits["tolerated_logins"],
            reason="Failed logins {failed_logins} are more than {tolerated_logins}",
            customer_response="Our security team will open your account and contact you.",
            next_action="Hand over to the security team",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            when=lambda case, _: case["identity_check"] == "missing",
            reason="The identity check is missing",
            customer_response="Please complete the identity check first, then ask us again.",
            next_action="Send the identity check link",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            only_for="unknown_order",
            when=lambda case, _: case["known_device"],
            reason="The order came from a known device of the customer",
            customer_response="The order came from your own device; you may return it normally.",
            next_action="Explain the normal return",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="unknown_order",
            when=otherwise,
            reason="Order value {order_value} is within {agent_value} dollars, check passed, unknown device",
            customer_response="We have cancelled the order and refund it in full.",
            next_action="Cancel the order and refund it",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="account_unlock",
            when=otherwise,
            reason="Failed logins {failed_logins} are within {tolerated_logins} and the check passed",
            customer_response="Your account is open again; please set a new password.",
            next_action="Unlock and request a new password",
        ),
    ),
)
