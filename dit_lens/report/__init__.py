"""Tables, pictures and the HTML report."""
