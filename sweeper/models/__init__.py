"""Models: pretrained checkpoints, their blocks from embeddings to head, and their dropouts."""
