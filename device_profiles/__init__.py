"""Facts about boards, one TOML file each; `merino_edge.device.board` reads them."""
