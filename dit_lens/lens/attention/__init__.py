"""The attention lens: where chosen queries look, in bounded memory."""
