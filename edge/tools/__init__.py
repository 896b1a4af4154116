"""Tool calls as GLM-4 speaks them: written into a conversation, read out of an answer, enforced on one. Pure."""
