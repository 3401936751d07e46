"""What stands between the network and the routes: connections, hosts, tokens, limits, the end."""
