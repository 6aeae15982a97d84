"""Python imports this at the start of the programs that tests run in development mode.

In that mode asyncio reports each step of a task that took longer than 0.1 seconds. On a busy
machine any step may, and the programs' output is compared.
"""

import logging

logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))
