"""The page `/ask` of a coordinator: questions in English over its databases, in a browser.

Runs in the coordinator's process, as routes beside its own; `routes.ask_page` makes them. Loads
the agent and the databases' libraries when the first question is asked. What a question does is
decided in `text2sql`, where its requests go in `coordinator`.
"""
