-- The current top twenty, in the time of Paris: of the last three hours, by five minutes, that are complete.
SET timezone = 'Europe/Paris';
SELECT window_start, word, n
FROM trending
WHERE kind = 'hashtag' AND window_start = (SELECT millrace.last_closed_window('trending'))
ORDER BY n DESC, word LIMIT 20;
