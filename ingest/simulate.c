/*
 * A shop to try things with: events of people who look at products, put them into a cart and buy them, for
 * `millrace produce --simulate=shop`.
 *
 * Catalogue, people and their tastes are always the same, made from numbers by shop_mix(); only who comes when, and what
 * they do, is chance.  So two runs with different seeds are two days of one shop, and a model of one knows the other.
 * A taste prefers a few categories, and its people rank the products of a category in an order of their own: who has
 * learnt tastes recommends better than who lists what sells best.
 */
#include "ingest.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_USERS 3000
#define N_TASTES 12
#define N_FAVOURITES 4 /* categories of a taste */
#define N_STYLES 4	   /* orders in which products of a category are ranked */
#define N_ACTIVE 40	   /* people who are in the shop */
#define MAX_PRODUCTS 20
#define DAY_US INT64_C(86400000000)

/* What is sold. */
typedef struct Category
{
	const char *code, *brands; /* NULL: none; names separated by commas, the best known first */
	double least, most;		   /* price */
	int n_products, weight;	   /* weight: of it among those who have no favourite in mind */
} Category;

static const Category categories[] = {
	{"electronics.smartphone", "samsung,apple,xiaomi,huawei,oppo", 70, 1600, 20, 30},
	{"electronics.audio.headphone", "apple,samsung,xiaomi,sony,jbl", 10, 320, 18, 12},
	{"electronics.video.tv", "samsung,lg,sony,artel,haier", 120, 1900, 15, 9},
	{"electronics.clocks", "apple,casio,samsung,garmin", 30, 700, 14, 8},
	{"electronics.tablet", "apple,samsung,lenovo", 80, 1100, 10, 4},
	{"computers.notebook", "lenovo,acer,asus,hp,apple", 280, 2600, 18, 10},
	{"computers.peripherals.mouse", "logitech,razer,a4tech", 6, 120, 14, 3},
	{"computers.peripherals.keyboard", "logitech,razer,hyperx", 12, 190, 12, 2},
	{"computers.components.videocards", "gigabyte,msi,palit", 110, 1500, 12, 2},
	{"computers.desktop", "dell,hp,lenovo", 260, 2200, 10, 3},
	{"appliances.kitchen.refrigerators", "lg,samsung,indesit,beko", 190, 1700, 15, 6},
	{"appliances.kitchen.washer", "lg,indesit,samsung,candy", 170, 1100, 15, 6},
	{"appliances.kitchen.kettle", "tefal,polaris,scarlett", 10, 110, 12, 3},
	{"appliances.environment.vacuum", "samsung,dyson,xiaomi,arnica", 40, 780, 16, 7},
	{"appliances.personal.hair_cutter", "philips,braun,rowenta", 12, 140, 10, 2},
	{"appliances.iron", "tefal,philips,braun", 14, 190, 10, 3},
	{"apparel.shoes", "respect,baden,rieker,salamander", 18, 190, 20, 8},
	{"apparel.shoes.keds", "nike,adidas,puma", 25, 170, 18, 6},
	{"apparel.dress", "oodji,zarina,incity", 14, 120, 15, 3},
	{"apparel.shirt", "oodji,ostin,sela", 8, 70, 14, 3},
	{"apparel.trousers", "colins,ostin,levis", 15, 130, 12, 3},
	{"furniture.living_room.sofa", "hoff,brw,stolplit", 190, 1800, 14, 4},
	{"furniture.living_room.cabinet", "brw,hoff", 60, 900, 12, 3},
	{"furniture.bedroom.bed", "askona,ormatek,brw", 130, 1400, 14, 4},
	{"furniture.kitchen.table", "hoff,stolplit", 50, 600, 12, 2},
	{"kids.carriage", "chicco,cybex,tutis", 70, 900, 14, 4},
	{"kids.toys", "lego,hasbro,mattel,playdoh", 5, 160, 20, 5},
	{"kids.dolls", "mattel,zapf,hasbro", 8, 90, 12, 2},
	{"sport.bicycle", "stels,forward,stern,merida", 90, 1300, 15, 4},
	{"sport.trainer", "torneo,kettler", 60, 1200, 12, 2},
	{"sport.snowboard", "burton,nidecker", 120, 700, 10, 1},
	{"auto.accessories.player", "pioneer,kenwood,sony", 30, 420, 12, 3},
	{"auto.accessories.videoregister", "neoline,xiaomi,artway", 25, 260, 12, 2},
	{"auto.tires", "nokian,cordiant,kama,michelin", 35, 240, 16, 4},
	{"construction.tools.drill", "makita,bosch,metabo", 25, 390, 15, 4},
	{"construction.tools.saw", "makita,bosch,stihl", 40, 520, 12, 2},
	{"construction.tools.light", "gauss,era", 3, 60, 12, 2},
	{"garden.lawn_mower", "stihl,huter,champion", 80, 900, 12, 2},
	{"garden.seeds", "gavrish,aelita", 1, 9, 16, 2},
	{"stationery.paper", "svetocopy,ballet", 2, 25, 10, 1},
	{"books", "penguin,vintage,faber", 4, 45, 20, 5},
	{"medicine", "omron,microlife", 15, 130, 10, 2},
	{NULL, "sokolov,samsung,bioderma,makita,other brands", 3, 400, 20, 9},
	{NULL, NULL, 2, 150, 20, 7},
};

#define N_CATEGORIES (int) (sizeof categories / sizeof categories[0])

/* Somebody in the shop. */
typedef struct Visit
{
	int user, category, product;
	char session[40];
	enum
	{
		STEP_ENTER,
		STEP_VIEW,
		STEP_CART,
		STEP_PURCHASE
	} step; /* what they did last */
} Visit;

struct Shop
{
	uint64_t chance;
	int64_t next_id;
	int weights[N_CATEGORIES]; /* running sums */
	int first_product[N_CATEGORIES];
	double ranks[MAX_PRODUCTS + 1][MAX_PRODUCTS]; /* by number of products: running shares of the ranks */
	Visit visits[N_ACTIVE];
};

const char *const shop_fields[N_SHOP_FIELDS] = {"id",		   "event_time",	"event_type", "product_id",
												"category_id", "category_code", "brand",	  "price",
												"user_id",	   "user_session"};

/* The same number for the same thing, each time: what a property of it is drawn from. */
static uint64_t
shop_mix(uint64_t kind, uint64_t number)
{
	uint64_t state = kind << 32 ^ number;

	return random_bits(&state);
}

Shop *
shop_open(uint64_t seed, int64_t first_id)
{
	Shop *shop = mem_alloc(sizeof(Shop));
	int sum = 0, n_products = 0;

	shop->chance = seed;
	shop->next_id = first_id;
	for (int i = 0; i < N_CATEGORIES; i++)
	{
		shop->weights[i] = sum += categories[i].weight;
		shop->first_product[i] = n_products;
		n_products += categories[i].n_products;
	}
	/* Zipf's law. */
	for (int n = 1; n <= MAX_PRODUCTS; n++)
	{
		double share = 0;

		for (int i = 0; i < n; i++)
			shop->ranks[n][i] = share += 1 / (i + 1.5);
		for (int i = 0; i < n; i++)
			shop->ranks[n][i] /= share;
	}
	return shop;
}

void
shop_close(Shop *shop)
{
	free(shop);
}

/* ---- who does what ---- */

/* The category in which a number below the sum of all weights falls. */
static int
category_at(const Shop *shop, uint64_t number)
{
	int i = 0;

	while ((uint64_t) shop->weights[i] <= number)
		i++;
	return i;
}

static int
choose_category(Shop *shop, int user)
{
	static const double shares[N_FAVOURITES] = {0.42, 0.7, 0.88, 1}; /* running */
	uint64_t taste = shop_mix(1, (uint64_t) user) % N_TASTES,
			 sum = (uint64_t) shop->weights[N_CATEGORIES - 1];
	double share = random_share(&shop->chance);
	uint64_t i = 0;

	if (happens(&shop->chance, 0.22))
		return category_at(shop, random_bits(&shop->chance) % sum);
	while (share >= shares[i])
		i++;
	return category_at(shop, shop_mix(2, taste * N_FAVOURITES + i) % sum);
}

/* A product of the category; people of one style rank them alike. */
static int
choose_product(Shop *shop, int user, int category)
{
	int n = categories[category].n_products, rank = 0;
	int style = (int) (shop_mix(3, (uint64_t) user) % N_STYLES);
	double share = random_share(&shop->chance);

	while (share >= shop->ranks[n][rank])
		rank++;
	return (rank + style * n / N_STYLES) % n;
}

static void
enter(Shop *shop, Visit *visit)
{
	double share = random_share(&shop->chance);
	uint64_t high = random_bits(&shop->chance), low = random_bits(&shop->chance);

	visit->user = (int) (share * share * N_USERS); /* some come often */
	visit->category = choose_category(shop, visit->user);
	uuid_format(high, low, visit->session, sizeof visit->session);
}

static void
look_at_another(Shop *shop, Visit *visit)
{
	if (visit->step != STEP_ENTER && happens(&shop->chance, 0.4))
		visit->category = choose_category(shop, visit->user);
	visit->product = choose_product(shop, visit->user, visit->category);
	visit->step = STEP_VIEW;
}

static void
advance(Shop *shop, Visit *visit)
{
	double share = random_share(&shop->chance);

	if (visit->step == STEP_VIEW && share < 0.14)
		visit->step = STEP_CART;
	else if (visit->step == STEP_VIEW && share < 0.16)
		visit->step = STEP_PURCHASE; /* at once */
	else if (visit->step == STEP_CART && share < 0.5)
		visit->step = STEP_PURCHASE;
	else
	{
		/* Others leave, and somebody else comes. */
		if (visit->step == STEP_ENTER || share > (visit->step == STEP_PURCHASE ? 0.4 : 0.84))
		{
			visit->step = STEP_ENTER;
			enter(shop, visit);
		}
		look_at_another(shop, visit);
	}
}

/* ---- events ---- */

/* Of products: what they cost, and who makes them. */
static double
price_of(int category, int product)
{
	const Category *about = &categories[category];
	double share = (double) (shop_mix(4, (uint64_t) (category * 100 + product)) >> 11) * 0x1p-53;

	return round(100 * about->least * pow(about->most / about->least, share)) / 100;
}

static const char *
brand_of(int category, int product, int *n_bytes)
{
	const char *brand = categories[category].brands;
	double share = (double) (shop_mix(5, (uint64_t) (category * 100 + product)) >> 11) * 0x1p-53;
	int n = 1, chosen;

	if (brand == NULL || share < 0.05)
		return NULL;
	for (const char *c = brand; *c; c++)
		n += *c == ',';
	chosen = (int) (share * share * n); /* the first has the most */
	while (chosen-- > 0)
		brand = strchr(brand, ',') + 1;
	*n_bytes = (int) strcspn(brand, ",");
	return brand;
}

/* As Python's json.dumps writes a float that has two digits behind the point. */
static int
format_price(double price, char *out, size_t out_bytes)
{
	int n = snprintf(out, out_bytes, "%.2f", price);

	return out[n - 1] == '0' ? n - 1 : n;
}

static void
add_member(Buffer *out, ShopField *field, int i, const char *text, int n_bytes, bool is_quoted)
{
	buffer_printf(out, "%s\"%s\": %s", i ? ", " : "{", shop_fields[i], is_quoted && text ? "\"" : "");
	field->is_null = text == NULL;
	field->is_quoted = is_quoted && text;
	field->at = out->n_bytes;
	buffer_add(out, text ? text : "NaN", text ? (size_t) n_bytes : 3);
	field->n_bytes = out->n_bytes - field->at;
	buffer_add(out, "\"", field->is_quoted);
}

void
shop_next(Shop *shop, int64_t time_us, Buffer *out, ShopField fields[N_SHOP_FIELDS])
{
	static const char *const types[] = {
		[STEP_VIEW] = "view", [STEP_CART] = "cart", [STEP_PURCHASE] = "purchase"};
	Visit *visit = &shop->visits[random_between(&shop->chance, 0, N_ACTIVE - 1)];
	char id[24], time[64], iso[64], product[24], category[24], price[32], user[24];
	int n_brand = 0, i = 0;

	advance(shop, visit);
	time_format(time_us, time, sizeof time);
	snprintf(iso, sizeof iso, "%.10sT%.12sZ", time, time + 11);
	snprintf(id, sizeof id, "%" PRId64, shop->next_id++);
	snprintf(product, sizeof product, "%d",
			 1000000 + 37 * (shop->first_product[visit->category] + visit->product));
	snprintf(category, sizeof category, "%" PRIu64,
			 UINT64_C(2053013551932506308) + 7919 * shop_mix(6, (uint64_t) visit->category) % 4000000000);
	snprintf(user, sizeof user, "%" PRIu64,
			 512000000 + (uint64_t) visit->user * 11000 + shop_mix(7, (uint64_t) visit->user) % 11000);
	int n_price = format_price(price_of(visit->category, visit->product), price, sizeof price);
	const char *code = categories[visit->category].code,
			   *brand = brand_of(visit->category, visit->product, &n_brand);

	out->n_bytes = 0;
	for (; i < N_SHOP_FIELDS; i++)
	{
		const char *texts[N_SHOP_FIELDS] = {id,	   iso,	 types[visit->step], product, category, code, brand,
											price, user, visit->session};
		bool is_quoted = i == 1 || i == 2 || i == 5 || i == 6 || i == 9;

		add_member(out, &fields[i], i, texts[i],
				   i == 6		  ? n_brand
					   : i == 7	  ? n_price
					   : texts[i] ? (int) strlen(texts[i])
								  : 0,
				   is_quoted);
	}
	buffer_add(out, "}", 1);
}

/* ---- a past ---- */

/* How much happens from 1970 to a time, in days of the average: least at 6:00 UTC, most at 18:00. */
static double
activity(int64_t time_us)
{
	double days = (double) (time_us / DAY_US), day = (double) (time_us % DAY_US) / (double) DAY_US;

	return days + day + 0.6 / (2 * M_PI) * (sin(2 * M_PI * (day - 0.75)) - 1);
}

int64_t
shop_past_us(double share, int64_t from_us, int64_t to_us)
{
	double wanted = activity(from_us) + share * (activity(to_us) - activity(from_us));

	while (to_us - from_us > 1)
	{
		int64_t middle_us = from_us + (to_us - from_us) / 2;

		if (activity(middle_us) < wanted)
			from_us = middle_us;
		else
			to_us = middle_us;
	}
	return from_us;
}
