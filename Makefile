.PHONY: check test slow fmt bench

check:  ## lint, types and the fast tests
	uv run ruff check . && uv run ruff format --check . && uv run mypy && uv run pytest -x --ignore=tests/test_readme.py --ignore=tests/test_resume.py

test:  ## the whole suite
	uv run pytest

slow:  ## the minutes-long tests too
	uv run pytest -m "slow or not slow"

fmt:
	uv run ruff check --fix . ; uv run ruff format .

bench:  ## speed as ratios, measured in one run
	uv run scripts/benchmark.py
