-- Trending words: texts are split into words; those with a # (L’#emploi, too), mentions and retweets are counted over
-- three hours, every five minutes.  Times come as in 'Thu Apr 08 15:43:36 +0000 2021', which PostgreSQL reads.
CREATE TABLE tweets (created_at text NOT NULL, text text NOT NULL);
CREATE TABLE words (at timestamptz NOT NULL, kind text NOT NULL, word text NOT NULL);

SELECT millrace.create_pipe('words', 'tweets', $$
	INSERT INTO words
	SELECT created_at::timestamptz, kind, word
	FROM new_rows CROSS JOIN regexp_split_to_table(text, '\s+') AS word
	JOIN (VALUES ('hashtag', '%#%'), ('mention', '%@%'), ('retweet', 'RT')) AS kinds (kind, pattern) ON word LIKE pattern$$);

SELECT millrace.create_continuous_aggregate('trending', $$
	SELECT kind, word, millrace.hop(at, '3 hours', '5 minutes') AS window_start, count(*) AS n
	FROM words GROUP BY 1, 2, 3$$, watermark => '1 minute');
