"""The bench's sections: each measures one thing and tells its figures."""
