-- A model of what households buy, of the products in item_features, and their categories.
SELECT users, items, ratings FROM millrace.train_als('shop',
	'SELECT household, product, count(*) FROM purchases JOIN item_features USING (product) GROUP BY 1, 2', rank => 16, seed => 4);
SELECT items, categories FROM millrace.set_item_features('shop', 'SELECT product, category FROM item_features');

-- Baselines: the most bought, and random ones, of five different categories.
SELECT rank, item_id, score, category FROM millrace.baseline('shop', 'top_5');
SELECT rank, item_id, category FROM millrace.baseline('shop', 'random_5');

-- For one household: what it has not bought, one product of a category.
SELECT rank, item_id, source FROM millrace.recommend_top_k('shop', 7, 5, max_per_category => 1);
