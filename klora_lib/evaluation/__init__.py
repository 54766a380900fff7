"""How well a method keeps the subject and shows the style: images are scored over methods × pairs × seeds."""
