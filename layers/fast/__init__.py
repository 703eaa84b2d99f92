"""What makes a net fast: steps that replace one or several layers, and the plan that chooses them."""
