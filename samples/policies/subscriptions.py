"""The rules of subscriptions.txt, and the cases they are asked about."""

from random import Random
from typing import Any

from samples.rulebook import Limits, Request, Rule, Rulebook, near, otherwise, seldom


def draw_facts(rng: Random, issue_type: str, limits: Limits) -> dict[str, Any]:
    """Draw the facts of one running plan."""
    return {
        "days_since_renewal": near(rng, limits["refund_days"]),
        "pauses_used": near(rng, limits["pauses_before"]),
        "plan_type": rng.choice(("monthly", "monthly", "annual", "gift")),
        "box_shipped": rng.choice((True, False)),
        "change_queued": seldom(rng),
        "payment_dispute": seldom(rng),
    }


RULEBOOK = Rulebook(
    prefix="SUB",
    limits={"refund_days": 10, "pauses_before": 3},
    requests={
        "renewal_refund": Request(
            noun="refund",
            usual="Not Eligible",
            messages=(
                "I did not want the renewal, please refund it.",
                "My plan renewed and I want the money back.",
                "Please take back the last renewal.",
                "I meant to stop the plan before it renewed.",
            ),
        ),
        "pause_plan": Request(
            noun="pause",
            usual="Eligible",
            messages=(
                "I would like to skip the next box.",
                "Please pause my plan for a while.",
                "Can I pause without cancelling?",
                "I do not need the next box, please skip it.",
            ),
        ),
    },
    draw_facts=draw_facts,
    rules=(
        Rule(
            section=2,
            decision="In Progress",
            when=lambda case, _: case["change_queued"],
            reason="An earlier change of the plan is queued",
            customer_response="An earlier change is being carried out; we will write after it.",
            next_action="Wait for the queued change",
        ),
        Rule(
            section=3,
            decision="Escalate",
            when=lambda case, _: case["payment_dispute"],
            reason="A payment of the plan is in dispute at the bank",
            customer_response="Our billing team will settle the disputed payment and contact you.",
            next_action="Hand over to the billing team",
        ),
        Rule(
            section=4,
            decision="Not Eligible",
            when=lambda case, _: case["plan_type"] == "gift",
            reason="The plan is a gift and only its giver may change it",
            customer_response="Only the giver can change a gift plan, so no {request} is possible.",
            next_action="Close the case as gift plan",
        ),
        Rule(
            section=5,
            decision="Not Eligible",
            only_for="renewal_refund",
            when=lambda case, limits: case["days_since_renewal"] > limits["refund_days"],
            reason="Renewed {days_since_renewal} days ago; refunds close after {refund_days} days",
            customer_response="The window of {refund_days} days has closed, so the price is kept.",
            next_action="Offer to end the plan",
        ),
        Rule(
            section=6,
            decision="Not Eligible",
            only_for="pause_plan",
            when=lambda case, limits: case["pauses_used"] > limits["pauses_before"],
            reason="Pauses used: {pauses_used}, which is more than {pauses_before}",
            customer_response="All pauses of this year are used, so no pause is possible.",
            next_action="Close the case as pauses used",
        ),
        Rule(
            section=7,
            decision="Not Eligible",
            when=lambda case, _: case["box_shipped"] and case["plan_type"] == "monthly",
            reason="The box of this monthly plan has been shipped",
            customer_response="This month's box is on the road, so no {request} is possible.",
            next_action="Close the case as box shipped",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="renewal_refund",
            when=otherwise,
            reason="Day {days_since_renewal} of {refund_days}, plan {plan_type}, nothing excludes it",
            customer_response="Your renewal will be refunded to your payment method.",
            next_action="Refund the renewal",
        ),
        Rule(
            section=8,
            decision="Eligible",
            only_for="pause_plan",
            when=otherwise,
            reason="Pauses used: {pauses_used}, not more than {pauses_before}, plan {plan_type}",
            customer_response="Your plan is paused and the next box will be skipped.",
            next_action="Skip the next box",
        ),
    ),
)
