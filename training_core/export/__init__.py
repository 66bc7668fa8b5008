"""What a registered adapter becomes elsewhere, and the proof that it decides there as it was judged."""
