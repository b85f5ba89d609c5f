"""What records on behalf of the frameworks that an application already uses."""
