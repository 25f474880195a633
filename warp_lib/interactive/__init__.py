"""What people turn and watch: live cells, knobs and their cost, the explorer, the playground."""
