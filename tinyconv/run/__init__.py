"""What a long run needs: options, its folder, checkpoints, records, pictures."""
