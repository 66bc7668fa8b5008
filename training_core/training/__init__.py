"""Around a training: checkpoints, journal, locks, memory, disk, fingerprint."""
