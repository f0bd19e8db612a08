"""The board: every team and every baseline on the same images, ranked and audited."""
