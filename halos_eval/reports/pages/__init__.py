"""The report as static HTML pages beside a suite's table; they need no network, no server and no other file.

Model answers, tags and messages are text of strangers. Jinja2 escapes all of it, and a Content-Security-Policy in each
page allows only this project's script and style, by their digests.
"""
