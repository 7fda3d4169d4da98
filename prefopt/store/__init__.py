"""What is on disk: artefacts with manifests, checkpoints, run folders and their locks.

Nothing unverified is read, nothing half-written is believed: files are written beside, forced to the disk and renamed,
and a manifest with the sha256 of every file comes last. Nothing here imports torch.
"""
