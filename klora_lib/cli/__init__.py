"""The command line: plan and plot, generate and compare, evaluate, ui."""
