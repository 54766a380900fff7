"""How well a method keeps the subject and takes on the style: images scored over methods × pairs × seeds."""
