"""Ask a database in English, from a program of your own.

    .venv/bin/python launch/examples/ask_a_database.py --url http://127.0.0.1:8000/v1 \
        --db shop.sqlite "Which artist sold most last year?" "How many orders were there?"

Any OpenAI-compatible server does. Behind a hexgen-sglang coordinator the questions are workflows
with a deadline, and what they cost is found at GET /workflows.

`ask_database` is what a framework takes as a tool. With LangChain, inside the `async with` below:

    from langchain_core.tools import tool

    @tool
    async def shop_database(question: str) -> str:
        "Answers a question in English over the shop's database, with its rows."
        return await ask_database(agent, question)
"""

from __future__ import annotations

import argparse
import asyncio

from hexgen_sglang.text2sql import Agent, AgentSettings, Answer


async def ask_database(agent: Agent, question: str) -> str:
    """A question's answer as text: SQL and rows, or what went wrong."""
    answer = await agent.ask(question, deadline_s=60)
    return "\n".join([f"Q: {question}", *lines_of(answer)])


def lines_of(answer: Answer) -> list[str]:
    """What there is to say about an answer."""
    lines = [f"SQL: {answer.sql}"] if answer.sql is not None else []
    lines += [", ".join(map(str, row)) for row in answer.rows]
    lines += [answer.message] if answer.message else []
    lines += [f"left out: {dropped}" for dropped in answer.dropped]
    return [*lines, f"{answer.outcome.value} after {answer.elapsed_s:.1f} s"]


async def main() -> None:
    """All questions of the command line at once."""
    parser = argparse.ArgumentParser(description="Ask a database in English.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--db", required=True, help="SQLite or DuckDB file, or a server's URL")
    parser.add_argument("questions", nargs="+")
    given = parser.parse_args()

    settings = AgentSettings(num_candidates=3, max_rounds=1)
    async with Agent(given.url, given.db, settings=settings) as agent:
        answers = await asyncio.gather(*(ask_database(agent, one) for one in given.questions))
    print("\n\n".join(answers))


if __name__ == "__main__":
    asyncio.run(main())
