"""What FlashPack does on a GPU: see README.md."""
