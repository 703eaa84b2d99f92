"""More than one device: the paper's two columns, and replicas of one net."""
