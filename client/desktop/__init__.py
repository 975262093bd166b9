"""What a program in the volunteer's desktop session can see of the person at the machine: idle, fullscreen, locked."""
