"""The command line: plan and plot, generate and compare, evaluate and report, ui."""
