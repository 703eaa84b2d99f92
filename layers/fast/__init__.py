"""Steps that compute one or several layers faster, and the plan that chooses them."""
