"""What systemd is given to run a pool as a service: files made from templates (render), and put in place (install)."""
