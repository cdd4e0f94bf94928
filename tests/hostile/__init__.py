"""Whatever text a stranger can give: no sink interprets it, and no program ends without a message of this project."""
