# The workers. A gateway needs none of this: it installs the wheel.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv
WORKDIR /app

# pyproject.toml carries the pins of every version (constraint-dependencies).
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY streams streams
COPY src src
RUN uv pip install ".[worker,registry]" && rm -rf src schemas streams
RUN python -c "from tokenline.workers import application; application()" \
    && useradd --system --no-create-home --uid 10001 tokenline
USER 10001

CMD ["tokenline", "--help"]
