"""What GLM-4 is: configuration, weights, tokenizer. No OpenVINO here."""
