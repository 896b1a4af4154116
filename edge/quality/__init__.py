"""What compression costs: a text's perplexity, the distance from the checkpoint, tasks, needles in haystacks."""
