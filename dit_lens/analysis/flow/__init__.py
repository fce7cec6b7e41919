"""Where information moves: from the tokens where two inputs differ to those where their answers do."""
