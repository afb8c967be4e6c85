"""What a path stands for, and files that are made: folders, shards, open models."""
