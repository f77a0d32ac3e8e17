-- The current top twenty, in the time of Paris: of the open windows the one that ends first holds the last three hours.
SET timezone = 'Europe/Paris';
SELECT window_start, word, n
FROM trending
WHERE kind = 'hashtag' AND window_start = (SELECT min(window_start) FROM trending WHERE NOT final)
ORDER BY n DESC, word LIMIT 20;
