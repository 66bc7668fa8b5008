"""The examples at the end of every policy text are decided by the code as the text says."""

import re
from typing import Any

import pytest

from samples.cases import decide, policy_names, policy_text

# A case that reaches the last section; each example changes some of its facts.
PLAIN: dict[str, dict[str, Any]] = {
    "returns": {
        "days_since_delivery": 5,
        "item_condition": "unused",
        "final_sale": False,
        "return_in_transit": False,
        "safety_incident": False,
    },
    "shipping": {
        "days_overdue": 9,
        "parcel_value": 60,
        "carrier_scan": "stalled",
        "delay_cause": "carrier",
        "address_correct": True,
        "trace_open": False,
    },
    "promotions": {
        "basket_total": 70,
        "days_since_purchase": 3,
        "campaign_status": "running",
        "clearance_item": False,
        "several_accounts": False,
    },
    "payments": {
        "days_since_charge": 5,
        "charge_status": "posted",
        "payment_method": "card",
        "order_matches": False,
        "bank_dispute": False,
    },
    "fraud": {
        "order_value": 100,
        "failed_logins": 1,
        "identity_check": "passed",
        "known_device": False,
        "review_open": False,
    },
    "warranty": {
        "months_owned": 5,
        "repairs_done": 0,
        "damage_cause": "defect",
        "at_workshop": False,
        "safety_hazard": False,
    },
    "loyalty": {
        "points_balance": 900,
        "orders_this_year": 20,
        "account_status": "active",
        "points_pending": False,
        "staff_account": False,
    },
    "digital_goods": {
        "hours_since_purchase": 5,
        "devices_linked": 1,
        "key_state": "unused",
        "file_corrupt": False,
        "ticket_open": False,
    },
    "marketplace": {
        "days_since_contact": 9,
        "order_value": 50,
        "seller_status": "open",
        "seller_offer": "none",
        "photos_sent": True,
        "paid_on_site": True,
    },
    "subscriptions": {
        "days_since_renewal": 4,
        "pauses_used": 0,
        "plan_type": "monthly",
        "box_shipped": False,
        "change_queued": False,
        "payment_dispute": False,
    },
}

# The facts of the examples, in the order of the text. The expected rulings are read from the text.
EXAMPLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "returns": [
        ("refund_request", {"days_since_delivery": 30}),
        ("refund_request", {"days_since_delivery": 31}),
        ("exchange_request", {"days_since_delivery": 31}),
        ("exchange_request", {"days_since_delivery": 46, "final_sale": True, "item_condition": "faulty"}),
        ("refund_request", {"final_sale": True, "item_condition": "worn", "return_in_transit": True}),
        ("refund_request", {"days_since_delivery": 200, "item_condition": "worn", "safety_incident": True}),
    ],
    "shipping": [
        ("late_delivery", {"days_overdue": 7}),
        ("late_delivery", {"days_overdue": 8}),
        ("late_delivery", {"days_overdue": 8, "delay_cause": "weather"}),
        ("lost_parcel", {"parcel_value": 801, "address_correct": False}),
        ("lost_parcel", {"carrier_scan": "delivered", "days_overdue": 20, "parcel_value": 90}),
        ("lost_parcel", {"trace_open": True, "parcel_value": 900}),
    ],
    "promotions": [
        ("coupon_credit", {"basket_total": 40}),
        ("coupon_credit", {"basket_total": 41, "days_since_purchase": 90}),
        ("price_adjustment", {"days_since_purchase": 14, "basket_total": 20}),
        ("price_adjustment", {"days_since_purchase": 15}),
        ("coupon_credit", {"clearance_item": True, "campaign_status": "unconfirmed"}),
        ("coupon_credit", {"campaign_status": "ended", "several_accounts": True}),
        ("price_adjustment", {"campaign_status": "ended", "clearance_item": True}),
    ],
    "payments": [
        ("duplicate_charge", {"days_since_charge": 90}),
        ("duplicate_charge", {"days_since_charge": 91}),
        ("wrong_amount", {"days_since_charge": 61}),
        ("duplicate_charge", {"charge_status": "pending", "order_matches": True}),
        ("duplicate_charge", {"charge_status": "reversed"}),
        ("wrong_amount", {"charge_status": "reversed", "bank_dispute": True}),
        ("wrong_amount", {"payment_method": "voucher", "days_since_charge": 12, "order_matches": True}),
    ],
    "fraud": [
        ("unknown_order", {"order_value": 250}),
        ("unknown_order", {"order_value": 251}),
        ("account_unlock", {"failed_logins": 9, "identity_check": "missing"}),
        ("account_unlock", {"failed_logins": 8, "identity_check": "missing"}),
        ("account_unlock", {"failed_logins": 2, "order_value": 900}),
        ("unknown_order", {"identity_check": "failed", "review_open": True}),
    ],
    "warranty": [
        ("repair_claim", {"months_owned": 24}),
        ("repair_claim", {"months_owned": 25}),
        ("replacement_claim", {"months_owned": 10, "repairs_done": 2}),
        ("replacement_claim", {"months_owned": 10, "repairs_done": 3}),
        ("repair_claim", {"months_owned": 40, "damage_cause": "modified", "safety_hazard": True}),
        ("repair_claim", {"months_owned": 3, "damage_cause": "modified"}),
        ("replacement_claim", {"damage_cause": "accident", "at_workshop": True}),
    ],
    "loyalty": [
        ("points_redemption", {"points_balance": 500}),
        ("points_redemption", {"points_balance": 501, "orders_this_year": 0}),
        ("points_redemption", {"account_status": "dormant"}),
        ("tier_upgrade", {"orders_this_year": 12, "points_balance": 2000}),
        ("tier_upgrade", {"orders_this_year": 13, "points_balance": 10}),
        ("points_redemption", {"account_status": "frozen", "points_pending": True}),
        ("points_redemption", {"staff_account": True, "points_balance": 3000}),
        ("tier_upgrade", {"staff_account": True, "points_pending": True}),
    ],
    "digital_goods": [
        ("download_refund", {"hours_since_purchase": 48}),
        ("download_refund", {"hours_since_purchase": 49}),
        ("download_refund", {"key_state": "activated"}),
        ("download_refund", {"key_state": "activated", "file_corrupt": True}),
        ("access_restore", {"devices_linked": 3, "key_state": "activated", "hours_since_purchase": 90}),
        ("access_restore", {"devices_linked": 4}),
        ("access_restore", {"devices_linked": 9, "key_state": "revoked"}),
    ],
    "marketplace": [
        ("seller_silent", {"days_since_contact": 3}),
        ("seller_silent", {"days_since_contact": 4}),
        ("not_as_described", {"order_value": 401, "photos_sent": False}),
        ("not_as_described", {"order_value": 400, "photos_sent": False, "seller_offer": "partial"}),
        ("seller_silent", {"seller_status": "suspended", "paid_on_site": False}),
        ("seller_silent", {"seller_status": "holiday", "days_since_contact": 5, "seller_offer": "full"}),
    ],
    "subscriptions": [
        ("renewal_refund", {"days_since_renewal": 10}),
        ("renewal_refund", {"days_since_renewal": 11}),
        ("renewal_refund", {"plan_type": "annual", "box_shipped": True}),
        ("pause_plan", {"pauses_used": 1, "box_shipped": True}),
        ("pause_plan", {"plan_type": "annual", "pauses_used": 3}),
        ("pause_plan", {"plan_type": "annual", "pauses_used": 4}),
        ("renewal_refund", {"plan_type": "gift", "change_queued": True}),
    ],
}


@pytest.mark.parametrize("name", policy_names())
def test_policy_examples_are_decided_as_the_text_says(name: str) -> None:
    examples = " ".join(policy_text(name).partition("\n9. ")[2].split())
    written = re.findall(r"(Not Eligible|Eligible|Escalate|In Progress) under section (\d)", examples)
    rulings = [decide(name, {"issue_type": issue, **PLAIN[name], **changes}) for issue, changes in EXAMPLES[name]]
    assert [(ruling.decision, str(ruling.section)) for ruling in rulings] == written
