-- Products of the store's own brand only.  The query of the candidates runs as who asks.
SELECT rank, item_id, source
FROM millrace.recommend_top_k('shop', 7, 5, candidates => $$SELECT product FROM products WHERE brand = 'Private'$$);
