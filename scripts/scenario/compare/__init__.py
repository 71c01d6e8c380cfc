"""Many virtual runs side by side: policies, reporters and their constants, over the same seeds."""
